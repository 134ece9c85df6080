"""The Condor language: submit files, ClassAds, output formats, the user log. Pure: what it needs comes in."""
