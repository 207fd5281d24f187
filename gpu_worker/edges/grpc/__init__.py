"""The gRPC door and the streams between stages."""
