"""Media: image and video sources of the commands, and the files they write."""
