"""Mining: from embeddings to difficult negatives."""
