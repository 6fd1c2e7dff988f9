"""Do transitions drawn by influence make DQN and SAC learn better, and does influence find corrupt ones?"""
