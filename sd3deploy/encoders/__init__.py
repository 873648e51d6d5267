"""Text encoders of SD3: the table of choices, where weights come from, how they are quantized, what they take."""
