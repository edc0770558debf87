// KJ's event loop inside a process that is not ours.
#pragma once

#include <kj/async-io.h>

namespace fastserve {

/// Sets up the event loop of the calling thread, which must be one that the library started. KJ
/// ignores SIGPIPE for the whole process; here the host keeps what it had chosen, and this thread
/// blocks the signal instead.
kj::AsyncIoContext set_up_event_loop();

}  // namespace fastserve
