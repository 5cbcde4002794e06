"""The generated world: phantoms, their reports, mistakes in them, questions and dictations."""
