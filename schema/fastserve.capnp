@0x8e3a2e27138942b1;
# The service that a deployed model answers: text in, tokens out, streamed.
#
# A client connects over TCP, takes the bootstrap capability (a FastServe), calls hello() once and
# then whatever it likes. Any Cap'n Proto implementation will do; no file but this one is needed.
#
# How this file changes: fields, methods, enumerants and parameters are added at the end and never
# renumbered, reused or removed, so that older clients and newer servers understand each other. An
# unset field means what it meant before the field existed. Something that older clients would get
# wrong raises `protocol`, which hello() compares.
#
# Errors: a call that can fail has a result `error`, null when the call succeeded. Cap'n Proto's own
# exceptions mean that the connection is gone or that the peer lacks a method.
#
# Limits of a server (by default): 256 connections, messages of 4 MiB, 16 levels of nesting, 64
# unfinished requests a connection; who has not said hello after 10 seconds, or says nothing for 10
# minutes with no request running or with events unanswered, is disconnected.
#
# A server that stops first ends its requests, so that each gets its last event: `cancelled`, though
# nobody cancelled it.

using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("fastserve::wire");

const protocol :UInt16 = 1;
# The protocol that this file describes.

interface FastServe {
  hello @0 (protocol :UInt16, client :Text) -> (protocol :UInt16, oldestProtocol :UInt16, server :Text);
  # What each side speaks. `client` and `server` are names and versions for logs, "fsctl 0.1.0". The
  # server serves clients from `oldestProtocol` to `protocol`; others should tell their user which
  # side to update.

  listModels @1 () -> (models :List(Model));

  health @2 () -> (health :Health);

  generate @3 (request :GenerateRequest, sink :EventSink) -> (generation :Generation, requestId :UInt64, error :Error);
  # Queues a request and answers at once; its tokens go to `sink`. With `error` set nothing was
  # queued and `sink` is never called.

  tokenise @4 (model :Text, text :Text, addSpecialTokens :Bool = true) -> (tokens :List(Int32), error :Error);

  detokenise @5 (model :Text, tokens :List(Int32)) -> (text :Text, error :Error);

  formatChat @6 (model :Text, messages :List(ChatMessage)) -> (prompt :Text, error :Error, stop :List(Text));
  # The prompt that asks the model for its next message, by its own chat template; for a model
  # without one, lines that begin with the role. `stop` belongs into the request: it ends the
  # message where no token of the model's does.
}

interface EventSink {
  # Implemented by the client.

  push @0 (event :GenerateEvent) -> ();
  # The news of one engine step. At most 16 calls are unanswered at a time: answer when the event is
  # dealt with. Until then further news is merged into one event, so a slow reader gets fewer and
  # larger ones and nothing is lost. The event whose `finish` is set is the last call.
}

interface Generation {
  # A running request. Dropping this capability cancels it, as does losing the connection: hold it
  # until the last event.

  cancel @0 () -> ();
  # The last event then says `cancelled`. Harmless when the request has finished.
}

struct GenerateRequest {
  model @0 :Text;
  # A name from listModels(). Empty: the only model there is.

  prompt :union {
    text @1 :Text;
    tokens @2 :List(Int32);
  }

  maxTokens @3 :Int32 = 128;

  sampling @4 :Sampling;

  stop @5 :List(Text);
  # Generation ends before the first of these appears; at most 16.

  ignoreEos @6 :Bool;

  timeoutMilliseconds @7 :UInt64;
  # From submission; 0: none. Past it the last event says `deadline`.
}

struct Sampling {
  # Applied in the order repetition penalty, temperature, top-k, top-p, min-p. The defaults change
  # nothing: the model's own distribution.

  temperature @0 :Float64 = 1.0;
  # 0: always the likeliest token.

  topK @1 :Int32;
  # 0: off.

  topP @2 :Float64 = 1.0;

  minP @3 :Float64;
  # Relative to the likeliest token.

  repetitionPenalty @4 :Float64 = 1.0;

  seed @5 :UInt64;
  # The same seed, request and model give the same tokens, whoever shares the batch.

  topLogprobs @6 :Int32 = -1;
  # -1: no logprobs. n: of the chosen token and of the n likeliest, at most 20.
}

struct GenerateEvent {
  tokens @0 :List(Token);

  text @1 :Text;
  # What became certain of the text: whole UTF-8 characters that begin no stop string. It may lag
  # behind `tokens`.

  finish @2 :FinishReason;

  error @3 :Error;
  # Set when `finish` is `error`.

  promptTokens @4 :UInt32;
  generatedTokens @5 :UInt32;
  # Set on the last event.
}

struct Token {
  id @0 :Int32;
  logprob @1 :Float64;
  # Natural logarithm, of the model's own distribution. Set when asked for, as is `top`.

  top @2 :List(TokenLogprob);
}

struct TokenLogprob {
  id @0 :Int32;
  logprob @1 :Float64;
}

enum FinishReason {
  none @0;       # more is to come
  eos @1;        # the model ended its text
  stop @2;       # a stop string appeared
  length @3;     # maxTokens were generated
  context @4;    # the model's context is full
  cancelled @5;
  deadline @6;
  error @7;
}

struct ChatMessage {
  role @0 :Text;
  # "system", "user" or "assistant".

  content @1 :Text;
}

struct Model {
  name @0 :Text;
  version @1 :Text;
  architecture @2 :Text;
  weightFormat @3 :Text;
  parameters @4 :Int64;
  weightBytes @5 :Int64;
  contextLength @6 :Int32;
  vocabSize @7 :Int32;

  onDevice @8 :Bool = true;
  # False while the model waits on the host for a request, or is on its way to the device: its first
  # token comes later then.
}

struct Health {
  ready @0 :Bool;
  running @1 :Int32;
  queued @2 :Int32;
  kvBlocksFree @3 :Int32;
  kvBlocks @4 :Int32;
  tokensGenerated @5 :Int64;
  requestsFinished @6 :Int64;
  uptimeSeconds @7 :Float64;
  device @8 :Text;
}

struct Error {
  # What failed, on what, and what to do next.

  code @0 :Code;
  what @1 :Text;
  where @2 :Text;
  hint @3 :Text;

  enum Code {
    # A client that meets a code it does not know treats it as `internal`.
    none @0;
    invalidArgument @1;
    notFound @2;
    alreadyExists @3;
    corrupt @4;
    unsupported @5;
    resourceExhausted @6;
    unavailable @7;
    deadlineExceeded @8;
    cancelled @9;
    contractBroken @10;
    io @11;
    internal @12;
  }
}
