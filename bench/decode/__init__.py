"""How fast layer slices decode, beside engines that do the same: `livery bench decode`."""
