"""How the demo checkpoint is made: a generated world, three training stages, an evaluation."""
