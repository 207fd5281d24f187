"""Session passes: who signed them, and which are used up."""
