"""What a class works with: claims that may fail before its eyes, and exercises that check themselves."""
