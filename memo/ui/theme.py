"""The look: warm paper and a deep sea green, from fonts that come with Gradio."""

from __future__ import annotations

import gradio as gr
from gradio.themes.utils.fonts import LocalFont

KOREAN = ("Noto Sans CJK KR", "Noto Sans KR", "Apple SD Gothic Neo", "Malgun Gothic")

SEA = gr.themes.Color(
    c50="#eef7f5", c100="#d6ece8", c200="#aed9d2", c300="#7fc0b7", c400="#4fa399", c500="#2f857c", c600="#1f6b64",
    c700="#195650", c800="#154541", c900="#0f3431", c950="#08211f", name="sea",
)  # fmt: skip
PAPER = gr.themes.Color(
    c50="#faf8f4", c100="#f3efe7", c200="#e6dfd2", c300="#d0c7b6", c400="#9d9383", c500="#736a5d", c600="#585147",
    c700="#3f3a33", c800="#2a2723", c900="#1d1b18", c950="#141311", name="paper",
)  # fmt: skip


def theme() -> gr.themes.Base:
    """The theme, light and dark."""
    base = gr.themes.Base(
        primary_hue=SEA, secondary_hue=SEA, neutral_hue=PAPER, radius_size=gr.themes.sizes.radius_md,
        font=[LocalFont("IBM Plex Sans"), LocalFont("Lora"), *KOREAN, "system-ui", "sans-serif"],
        font_mono=[LocalFont("IBM Plex Mono"), "ui-monospace", "monospace"],
    )  # fmt: skip
    return base.set(
        body_background_fill="*neutral_100", body_background_fill_dark="*neutral_950",
        body_text_color="*neutral_900", body_text_color_dark="*neutral_100",
        body_text_color_subdued="*neutral_600", body_text_color_subdued_dark="*neutral_300",
        background_fill_primary="white", background_fill_primary_dark="*neutral_900",
        background_fill_secondary="*neutral_50", background_fill_secondary_dark="*neutral_800",
        border_color_primary="*neutral_200", border_color_primary_dark="*neutral_700",
        block_background_fill="transparent", block_background_fill_dark="transparent",
        block_border_width="0px", block_shadow="none", block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent", block_label_border_width="0px",
        block_label_text_color="*neutral_700", block_label_text_color_dark="*neutral_200",
        block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_300",
        input_background_fill="*neutral_50", input_background_fill_dark="*neutral_800",
        input_border_color="*neutral_300", input_border_color_dark="*neutral_600", input_border_width="1px",
        input_placeholder_color="*neutral_500", input_placeholder_color_dark="*neutral_400",
        button_primary_background_fill="*primary_600", button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600", button_primary_background_fill_hover_dark="*primary_700",
        button_primary_text_color="white", button_primary_text_color_dark="white",
        button_secondary_background_fill="*neutral_100", button_secondary_background_fill_hover="*neutral_200",
        button_secondary_background_fill_dark="*neutral_800",
        button_secondary_background_fill_hover_dark="*neutral_700",
        button_secondary_border_color="*neutral_300", button_secondary_border_color_dark="*neutral_600",
        checkbox_background_color_selected="*primary_600", checkbox_background_color_selected_dark="*primary_500",
        link_text_color="*primary_700", link_text_color_dark="*primary_300",
    )  # fmt: skip
