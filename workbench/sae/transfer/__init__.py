"""What fine-tuning will move: shifted features, scores, forecasts, and what they are held against."""
