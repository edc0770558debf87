// A plugin whose symbols are not all there.
extern "C" int fastserve_nowhere();
extern "C" int unrelated() { return fastserve_nowhere(); }
