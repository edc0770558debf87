// Asks a deployment (`fsctl deploy MODEL --port PORT`) two questions at once.
//   client HOST PORT PROMPT
#include <fastserve/client.h>

#include <cstdio>
#include <string>
#include <thread>

namespace {

void ask(const std::string& host, int port, const std::string& prompt) {
  fastserve::Client client{host, port};
  for (const auto& model : client.models())
    std::printf("%s@%s: %s, %d tokens of context\n", model.name.c_str(), model.version.c_str(),
                model.weight_format.c_str(), model.context_length);

  // Requests that run at the same time share the server's batches, and no answer changes by that.
  fastserve::Generation beside;
  std::thread other([&] { beside = client.generate(prompt, {.max_tokens = 20, .seed = 7}); });
  const auto answer = client.generate(prompt, {.max_tokens = 20,
                                               .seed = 7,
                                               .on_text =
                                                   [](const std::string& text) {
                                                     std::printf("%s", text.c_str());
                                                     std::fflush(stdout);
                                                     return true;
                                                   },
                                               .timeout_seconds = 60,
                                               .top_logprobs = 2});
  other.join();
  std::printf("\n[%zu tokens, ended by %s, the first with log-probability %.3f]\n",
              answer.tokens.size(), answer.finish_reason.c_str(), answer.logprobs.at(0));
  if (answer.text != beside.text) throw std::runtime_error("the same question, two answers");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: client HOST PORT PROMPT\n");
    return 2;
  }
  try {
    ask(argv[1], std::stoi(argv[2]), argv[3]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "client: %s\n", error.what());
    return 1;
  }
  return 0;
}
