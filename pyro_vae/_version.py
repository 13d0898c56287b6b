"""The version, alone in a file so that the build reads it without importing torch."""

version = "0.1.0"
