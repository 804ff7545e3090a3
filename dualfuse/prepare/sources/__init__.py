"""Raw pictures and captions, as users have them, read one picture after the other."""
