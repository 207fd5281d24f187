"""The gRPC contract of layer slices, and the stubs that `make proto` makes of it; they alone need grpc."""
