"""From run records to tables and figures: collect -> cell -> render. Nothing here imports torch."""
