"""One job from the press of Generate to the picture: its state, its facts, the guards, the memory forecast, and the watch over it."""
