@0xc0be811b22256962;
# The service of a cluster's coordinator for those who operate it: nodes, jobs, tokens.
#
# A client connects with TLS 1.3 and the application protocol (ALPN) `fastserve-client/1`, without a
# certificate of its own. An access token reads fsa1-AUTHORITY-SECRET: AUTHORITY is the SHA-256 of
# the certificate, 64 hex digits, that must lie in the coordinator's chain and have signed its
# certificate. One byte (0x01) comes first from the coordinator; from there on both sides speak Cap'n
# Proto. The client takes the bootstrap capability (a Cluster) and calls open() once. What that
# answers, a Control, may do what the token's role may do: `read` looks, `run` also starts, stops and
# ends jobs, `admin` also changes nodes and makes tokens.
#
# How this file changes: as fastserve.capnp does. Fields, methods, enumerants and parameters are added
# at the end and never renumbered, reused or removed. A client that meets an enumerant it does not
# know shows it as unknown. Something that older clients would get wrong raises `clusterProtocol`.
#
# Errors: every call has a result `error`, null when it succeeded; with it set, no other result is.
# A call above the role fails with `invalidArgument`. Cap'n Proto's own exceptions mean that the
# connection is gone or that the coordinator lacks a method.
#
# Limits (by default): messages of 4 MiB, 16 levels of nesting, 256 connections, 16 unfinished calls
# and 8 watches a connection. Who has not been let in 5 seconds after connecting, or says nothing for
# 10 minutes with nothing under way, is disconnected; so is who leaves an update unanswered that
# long. A token that expires or is taken back is worth nothing half a minute later, on connections that
# are open, too.
#
# Two more protocols are spoken at the coordinator's port, told apart by ALPN. Each begins with the
# one byte 0x01 as above, and two documents (four bytes of length, the lowest first, then JSON): what
# the client wants, with its token, and the answer, which carries {"error": {code, what, where, hint}}
# when it is refused.
#   fastserve-generate/1  {"want": "generate", "token", "model"}: from there on the client speaks with
#                         the node that serves the model, as fastserve.capnp has it. run.
#   fastserve-models/1    {"want": "pull", "token", "model"} and {"want": "push", "token", "name"}:
#                         models, piece by piece (api/model_transfer.h). run.
#
# Texts marked JSON hold one JSON document, UTF-8.

using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("fastserve::wire");
using import "fastserve.capnp".Error;

const clusterProtocol :UInt16 = 1;
# The protocol that this file describes.

interface Cluster {
  open @0 (protocol :UInt16, client :Text, token :Text)
       -> (protocol :UInt16, oldestProtocol :UInt16, server :Text, role :Role, control :Control, error :Error);
  # Shows the access token. `client` and `server` are names and versions for logs, "fastserve 0.1.0".
  # The coordinator serves clients from `oldestProtocol` to `protocol`, and says so to others, too.
  # One attempt a connection.
}

enum Role {
  # Each may do what those before it may.
  read @0;
  run @1;
  admin @2;
}

interface Control {
  ping @0 () -> ();
  # Whether the coordinator is there. Answered at once, however long other calls take.

  status @1 () -> (status :Text, error :Error);
  # JSON: the cluster's id, epoch, version, uptime and counts.

  nodes @2 () -> (nodes :List(Node), error :Error);

  drain @3 (node :Text, drain :Bool = true) -> (error :Error);
  # admin. The node gets no new work and what it holds moves elsewhere; false takes that back.

  remove @4 (node :Text) -> (error :Error);
  # admin. Its certificate is refused from now on.

  train @5 (request :Text) -> (job :Text, error :Error);
  # run. Starts a job; answers its id once the data has been read, which may take minutes. It goes on
  # when the client goes.
  #
  # `request`, JSON: an object of the settings of `fsctl train`; absent or null: the preset's. Paths
  # are the coordinator's. A key it does not know is refused.
  #   model data preset from resume precision                             texts
  #   gradients weights_back consistency checkpoints reduce
  #   vocab_size batch block microbatches accumulation patience steps     integers
  #   evaluate_every evaluate_sequences checkpoint_every warmup_steps
  #   seed trainers lanes shards checkpoint_copies keep_checkpoints replicas
  #   epochs learning_rate min_learning_rate weight_decay clip_norm       numbers
  #   validation_fraction outer_learning_rate outer_momentum
  #   publish_best                                                        true or false
  # JSON, and not fields, so that a setting reaches a coordinator through tools that are older.

  jobs @6 () -> (jobs :List(Job), error :Error);
  # Every job, oldest first. Without `details` when those would not fit into a message.

  job @7 (id :Text) -> (job :Job, error :Error);

  pause @8 (id :Text) -> (error :Error);
  # run. Writes a checkpoint and frees the nodes.

  resume @9 (id :Text) -> (error :Error);
  # run. A paused or interrupted job goes on, and ends in the same bits.

  cancel @10 (id :Text) -> (error :Error);
  # run.

  log @11 (id :Text, from :UInt64, most :UInt32 = 1000) -> (lines :List(Text), error :Error);
  # The job's log from line `from` (0: the first). Fewer than `most` lines when a message is full:
  # ask on from the next one. None: there are no more yet.

  audit @12 (id :Text) -> (report :Text, error :Error);
  # JSON: proof from the job's ledger that each sample counted once an epoch, or an error `corrupt`.

  makeAccessToken @13 (role :Role, label :Text, lifetimeSeconds :Int64) -> (token :Text, error :Error);
  # admin.

  makeJoinToken @14 (lifetimeSeconds :Int64) -> (token :Text, error :Error);
  # admin.

  tokens @16 () -> (tokens :Text, error :Error);
  # admin. JSON, the oldest first: an array of {id, kind, label, created_unix, expires_unix, expired,
  # uses_left}; never a token itself.

  revokeToken @17 (id :Text) -> (error :Error);
  # admin. Nobody comes in by it any more; connections that are open stay.

  models @18 (model :Text) -> (models :Text, error :Error);
  # JSON: an array of the versions in the coordinator's store, by name and version, each {name,
  # version, current, tags, created_unix, bytes, unique_bytes, architecture, weight_format, parameters,
  # made_by, parent, details}; only the one that `model` names ("name", "name@3", "name@tag") when it
  # is not empty. Without `details` when those would not fit into a message.

  changeModel @19 (change :ModelChange, model :Text, to :Text) -> (freedBytes :UInt64, error :Error);
  # run to point and to tag, admin to rename and to remove. `to`: the tag, or the new name.

  verifyModel @20 (model :Text, progress :ProgressSink) -> (error :Error);
  # run. Reads and checks every byte of it, which may take minutes. `progress`, which may be null, is
  # told how far it is.

  deploy @21 (request :Text) -> (job :Text, error :Error);
  # run. A node with the role `server` gets the model and serves it until the job is cancelled; it is
  # served again when the node or the coordinator is started again, and by another node when it is
  # lost or drained. `request`, JSON; absent: as `fsctl deploy` does it.
  #   model address weights kv node                                       texts
  #   port context_tokens max_queue model_memory                          integers
  #   allow_remote                                                        true or false
  # The port is open to whoever reaches it: loopback alone unless `allow_remote`. Through the
  # coordinator it is always to be had (see below).

  compress @22 (request :Text) -> (job :Text, error :Error);
  # run. A node with the role `compressor`, or the coordinator where there is none, makes a model of
  # the coordinator's store smaller; what comes of it is published there.
  #   model to weights head prune data                                    texts
  #   sparsity max_perplexity_increase max_perplexity min_tokens_per_second   numbers
  #   max_bytes                                                           integer
  # `data` is the coordinator's; absent: what the model was trained on. Progress and result are in the
  # job's details.

  removeJob @23 (id :Text) -> (error :Error);
  # admin. Forgets a job that has ended, is paused or was interrupted, and deletes its checkpoints.

  watch @15 (job :Text, withNodes :Bool, updatesPerSecond :Float64 = 2, sink :UpdateSink)
        -> (watching :Watching, error :Error);
  # Sends what becomes of one job, or with `job` empty of all that have not ended, to `sink`: at most
  # `updatesPerSecond` (up to 10) updates, the first at once. The last update of one job is that in
  # which it has finished, failed or been cancelled.
}

enum ModelChange {
  point @0;
  tag @1;
  untag @2;
  rename @3;
  remove @4;
}

interface UpdateSink {
  # Implemented by the client.

  push @0 (update :Update) -> ();
  # One call at a time is unanswered: answer when the update is dealt with. Until then nothing is
  # gathered for this client, and the next update says how things stand by then. When nothing
  # changes, the last update comes again after 5 seconds: who hears none for longer has lost the
  # coordinator.
}

interface ProgressSink {
  # Implemented by the client.

  push @0 (fraction :Float64) -> ();
  # 0 to 1, a few times a second while it changes. One call at a time is unanswered.
}

interface Watching {
  # A running watch. Dropping this capability ends it, as does losing the connection.
}

struct Update {
  jobs @0 :List(Job);

  nodes @1 :List(Node);
  # With `withNodes`.

  last @2 :Bool;
  # No more updates follow.

  error @3 :Error;
  # Why the watch ended. Set on a last update.
}

struct Node {
  name @0 :Text;
  address @1 :Text;
  # Where peers reach its bulk lane.

  roles @2 :List(Text);
  # "trainer", "parameter-server", "compressor", "server"

  state @3 :State;
  lanes @4 :Int32;
  version @5 :Text;
  device @6 :Text;
  numericsId @7 :Text;
  joinedUnix @8 :Int64;
  lastHeardUnix @9 :Int64;
  clockSkewSeconds @10 :Float64;
  # Its clock minus the coordinator's.

  note @11 :Text;
  # Why it is silent, gone or not used.

  job @12 :Text;
  # That it works in; the figures after it are of this job.

  share @13 :Float64;
  # Of the step's microbatches.

  tokensPerSecond @14 :Float64;
  bytesPerSecond @15 :Float64;

  enum State {
    ready @0;
    draining @1;
    silent @2;
    gone @3;
  }
}

struct Job {
  id @0 :Text;
  model @1 :Text;
  state @2 :Text;
  # "waiting", "running", "paused", "interrupted", "finished", "failed", "cancelled"

  createdUnix @3 :Int64;
  step @4 :Int64;
  steps @5 :Int64;
  loss @6 :Float64;
  validationLoss @7 :Float64;
  tokensPerSecond @8 :Float64;
  etaSeconds @9 :Float64;
  incarnation @10 :UInt64;
  # Times it was started or restarted from a checkpoint.

  replayedSteps @11 :Int64;
  note @12 :Text;
  details @13 :Text;
  # JSON.

  kind @14 :Text;
  # "train", "deploy", "compress"; empty: of a coordinator that only trains.
}
