"""What a vocabulary is made of: its tokens, rows that were never set, tokens that were never trained."""
