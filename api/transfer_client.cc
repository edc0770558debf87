#include "api/transfer_client.h"

#include "api/model_transfer.h"
#include "api/transfer_desk.h"
#include "cluster/tokens.h"
#include "net/document_stream.h"

namespace fastserve {

Result<OpenedTransfer> open_transfer(const std::string& host, int port, const TransferAsk& ask,
                                     Nanoseconds timeout) {
  FS_ASSIGN(const Token token, parse_token(ask.token, Token::Kind::kAccess));
  FS_ASSIGN(Socket socket, connect_to(host, port, timeout));
  const char* protocol =
      ask.want == TransferAsk::Want::kGenerate ? kGenerateProtocol : kModelsProtocol;
  auto connection = connect_to_join(std::move(socket), endpoint_text(host, port), token.authority,
                                    protocol, timeout);
  if (!connection.ok()) {
    Error error = std::move(connection).error();
    if (error.code == ErrorCode::kUnsupported) {
      error.what = "is too old a coordinator for this";
      error.hint = "update the coordinator to this client's version";
    }
    return error;
  }
  FS_TRY(send_document(*connection->stream, encode(ask), steady_now() + timeout));
  auto answer =
      receive_word(*connection->stream, std::max<Nanoseconds>(timeout, std::chrono::minutes(1)));
  if (!answer.ok()) return std::move(answer).error();
  return OpenedTransfer{std::move(connection->stream), std::move(*answer)};
}

}  // namespace fastserve
