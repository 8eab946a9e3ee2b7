"""What every node gets beside messages_promise.py: Python >= 3.9 and, in exchange.py and link.py alone, pyzmq >= 22."""
