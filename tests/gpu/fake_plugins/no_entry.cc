// Some shared library.
extern "C" int unrelated() { return 0; }
