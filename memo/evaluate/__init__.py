"""Measurements: each module measures one thing and writes JSON that README, app and notebooks read."""
