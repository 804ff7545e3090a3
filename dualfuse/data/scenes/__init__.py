"""Drawn scenes: images of coloured shapes whose captions are true or false by the coordinates of the shapes."""
