#!/bin/sh
# Says what it was given and leaves a file behind.
echo "$(cat "$1") I run on $(uname -n) in $PWD and was given: $2"
cp "$1" hello.copy
