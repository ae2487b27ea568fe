"""Training the memory: pre-training, clues (SFT), reward from the generator's answers (RLGF), studying one document."""
