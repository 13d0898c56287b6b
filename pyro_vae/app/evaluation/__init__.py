"""What trained models are worth: runs are opened and measured, and told on the screen and as an HTML report."""
