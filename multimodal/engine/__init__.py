"""Many requests at once through one language model: iteration-level batching over embeddings.

Orca's scheduling (Yu et al. 2022): every step packs one token of each answer under way and a chunk
of the prompts that wait into one forward pass. Knows token ids and embeddings, no text and no media.
"""
