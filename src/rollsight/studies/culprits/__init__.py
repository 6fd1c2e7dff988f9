"""Does influence find the records that taught a planted behaviour, and better than simple sorts?"""
