"""Work on several processes and machines: accelerate starts those of one training, Ray holds those of many."""
