"""Sends back the bytes that arrive on standard input, a socket: the least that an app in Python does."""

import socket

with socket.socket(fileno=0) as stream:
    while received := stream.recv(65536):
        stream.sendall(received)
