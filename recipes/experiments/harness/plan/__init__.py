"""What is to be run: experiments, arms, and the settings that tuning chooses."""
