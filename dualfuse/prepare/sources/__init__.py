"""Raw images and captions, as users have them, read one image after the other."""
