"""What trains and computes, in a process of its own; torch is imported here alone. It has no network and no key."""
