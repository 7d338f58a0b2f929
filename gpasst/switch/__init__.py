"""The rules of a switch: which port leads to which address, and which host of a network has which address."""
