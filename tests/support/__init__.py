"""What tests of several areas share: time, waiting, peers that follow a script."""
