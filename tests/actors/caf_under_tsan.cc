// Tells ThreadSanitizer what orders CAF's messages.
//
// Debian's libcaf is not compiled under the sanitizer, so what its mailboxes order looks unordered,
// and every message would be reported as a race. These functions stand before the library's own
// (the program's symbols are found first) and mark the edge from sending a message to handling it.
#include <dlfcn.h>

#include <array>
#include <atomic>
#include <caf/all.hpp>
#include <cstdint>

/// The end of an actor or of a message, which the library counts references for, and what it does
/// with its own groups and errors.
extern "C" const char* __tsan_default_suppressions() {
  return "race:caf::actor_storage\n"
         "race:_ZN3caf13actor_storage\n"  // whose long names are not always undone
         "race:caf::mixin::sender*::~sender\n"
         "race:caf::local_actor::~local_actor\n"
         "race:caf::scheduled_actor::cleanup\n"  // deletes what came while it closed the mailbox
         "race:caf::scheduled_actor::~scheduled_actor\n"
         "race:caf::monitorable_actor::cleanup\n"
         "race:caf::actor_registry::erase\n"
         "race:caf::actor_proxy::~actor_proxy\n"
         "race:caf::intrusive_ptr_add_ref\n"
         "race:caf::message::~message\n"
         "race:caf::detail::dynamic_message_data::~dynamic_message_data\n"
         "race:caf::io::network::event_handler::~event_handler\n"  // a connection's, counted
                                                                   // likewise
         "race:LocalScribe::~LocalScribe\n"
         "race:caf::detail::tuple_vals<caf::down_msg>::~tuple_vals\n"
         "race:std::_Hashtable<caf::group\n";
}

namespace {

std::array<std::atomic<uint32_t>, 4096> edges;

std::atomic<uint32_t>& edge_of(const void* message) {
  return edges[(reinterpret_cast<uintptr_t>(message) >> 4) % edges.size()];
}

template <class Function>
Function original(const char* name) {
  return reinterpret_cast<Function>(::dlsym(RTLD_NEXT, name));
}

}  // namespace

namespace caf {

/// Threads that share one queue behind a mutex, which the sanitizer sees, instead of stealing from
/// each other.
const atom_value defaults::scheduler::policy = atom("sharing");

/// Whoever gives up the last reference deletes, after all the others have given up theirs.
void intrusive_ptr_release(actor_control_block* actor) {
  using Release = void (*)(actor_control_block*);
  static const auto next =
      original<Release>("_ZN3caf21intrusive_ptr_releaseEPNS_19actor_control_blockE");
  edge_of(actor).fetch_add(1, std::memory_order_acq_rel);
  next(actor);
}

void detail::intrusive_ptr_release(const dynamic_message_data* data) {
  using Release = void (*)(const dynamic_message_data*);
  static const auto next =
      original<Release>("_ZN3caf6detail21intrusive_ptr_releaseEPKNS0_20dynamic_message_dataE");
  edge_of(data).fetch_add(1, std::memory_order_acq_rel);
  next(data);
}

void scheduled_actor::enqueue(mailbox_element_ptr message, execution_unit* unit) {
  using Enqueue = void (*)(scheduled_actor*, mailbox_element_ptr, execution_unit*);
  static const auto next = original<Enqueue>(
      "_ZN3caf15scheduled_actor7enqueueESt10unique_ptrINS_15mailbox_elementENS_6detail8disposerEE"
      "PNS_14execution_unitE");
  edge_of(message.get()).fetch_add(1, std::memory_order_release);
  next(this, std::move(message), unit);
}

invoke_message_result scheduled_actor::consume(mailbox_element& message) {
  using Consume = invoke_message_result (*)(scheduled_actor*, mailbox_element&);
  static const auto next =
      original<Consume>("_ZN3caf15scheduled_actor7consumeERNS_15mailbox_elementE");
  edge_of(&message).load(std::memory_order_acquire);
  return next(this, message);
}

/// The same two for actors that wait in a thread of their own, such as the tests' scoped ones.
void blocking_actor::enqueue(mailbox_element_ptr message, execution_unit* unit) {
  using Enqueue = void (*)(blocking_actor*, mailbox_element_ptr, execution_unit*);
  static const auto next = original<Enqueue>(
      "_ZN3caf14blocking_actor7enqueueESt10unique_ptrINS_15mailbox_elementENS_6detail8disposerEE"
      "PNS_14execution_unitE");
  edge_of(message.get()).fetch_add(1, std::memory_order_release);
  next(this, std::move(message), unit);
}

intrusive::task_result blocking_actor::mailbox_visitor::operator()(mailbox_element& message) {
  using Visit = intrusive::task_result (*)(mailbox_visitor*, mailbox_element&);
  static const auto next =
      original<Visit>("_ZN3caf14blocking_actor15mailbox_visitorclERNS_15mailbox_elementE");
  edge_of(&message).load(std::memory_order_acquire);
  return next(this, message);
}

/// An actor that ends deletes what it was still sent.
bool scheduled_actor::cleanup(error&& reason, execution_unit* unit) {
  using Cleanup = bool (*)(scheduled_actor*, error&&, execution_unit*);
  static const auto next =
      original<Cleanup>("_ZN3caf15scheduled_actor7cleanupEONS_5errorEPNS_14execution_unitE");
  for (const auto& edge : edges) edge.load(std::memory_order_acquire);
  return next(this, std::move(reason), unit);
}

}  // namespace caf
