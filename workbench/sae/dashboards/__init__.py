"""What each feature is for: one pass over a corpus, counted, labelled, kept and shown."""
