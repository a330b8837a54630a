"""What closed-loop episodes add up to: tables, pages, wandb."""
