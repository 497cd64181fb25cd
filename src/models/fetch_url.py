"""Download a file with wget, over https: a program that downloads.py starts, with ADDRESS FILE.

wget writes into the working directory, and its timeout and its redirects can only be set for a
whole process, so it gets a process of its own.
"""
import socket
import sys
import urllib.request

import wget

STALL_SECONDS = 60  # a connection that sends nothing for so long is given up


class OnlyHttps(urllib.request.HTTPRedirectHandler):
    """Follow redirects, but not from https to anything else."""

    def redirect_request(self, request, file, code, message, headers, address):
        """Return the request that the redirect asks for."""
        if request.type == 'https' and not address.startswith('https:'):
            sys.exit(f'it redirects to {address}, which is not https')
        return super().redirect_request(request, file, code, message, headers, address)


if __name__ == '__main__':
    socket.setdefaulttimeout(STALL_SECONDS)
    urllib.request.install_opener(urllib.request.build_opener(OnlyHttps))
    wget.download(sys.argv[1], out=sys.argv[2])
