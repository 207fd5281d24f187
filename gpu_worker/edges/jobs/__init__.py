"""Jobs: their folders, their programs, what they fetch and push."""
