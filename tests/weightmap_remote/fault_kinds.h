#pragma once
/// The catalogue of what servers and networks do wrong, each kind with what must come of it.

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "loopback_server.h"

namespace librarian::weightmap::remote::testing {

/// What strikes: one request of a run.
struct Blow {
  const HttpRequest& request;
  int attempt;  ///< Requests for the same part at the same target before this one.
  const std::string& object;
  std::string elsewhere;  ///< URL of the object on a second, honest server.
  std::string closed;     ///< URL that refuses connections.
};

enum class FaultTarget : std::uint8_t {
  part,        ///< One range of the opened object, in the middle.
  last_part,   ///< The one that ends with the object.
  all_parts,   ///< All of them, the opening request excepted.
  opening,     ///< The first request alone.
  everything,  ///< All requests.
  document,    ///< A small file that is read whole, by ranges.
  api,         ///< A small document of unknown size, without ranges.
};

enum class FaultOutcome : std::uint8_t {
  right_bytes,
  clear_error,
  undetectable,  ///< Without a digest nothing tells; with one it must be caught.
};

/// How the server's certificate is made; `none` is plain http.
enum class FaultTls : std::uint8_t {
  none,
  trusted,
  expired,
  not_yet_valid,
  wrong_name,
  self_signed,
  unknown_authority,
  forged_authority,
  plain_server,  ///< https is asked of a server that speaks plain http.
};

enum class FaultProxy : std::uint8_t { none, for_http, for_https };

struct FaultSetup {
  FaultTls tls = FaultTls::none;
  FaultProxy proxy = FaultProxy::none;  ///< The server is one, named by the environment.
  std::string host{};                   ///< Instead of 127.0.0.1.
  bool closed_port = false;             ///< Nobody listens where the object should be.
  std::function<std::string(int)> greeting{};
  std::int64_t waits_at_least_ms = 0;  ///< The run may not end earlier.
  std::string says{};                  ///< What the error's sentence must contain.
};

constexpr int kAlways = 1'000'000;

struct FaultKind {
  std::string name;     ///< CamelCase: the test's name.
  std::string fault;    ///< What the server does, for the table.
  std::string defence;  ///< What Librarian does, for the table.
  FaultTarget target;
  int times;  ///< Attempts of a part that are struck; later ones are answered honestly.
  FaultOutcome required;
  std::optional<ErrorCode> code;  ///< Of the clear error.
  std::function<HttpAnswer(const Blow&)> strike;
  FaultSetup setup{};
};

/// All kinds in the order of the table. The first 28 are those that download tools were compared
/// with, in that order.
const std::vector<FaultKind>& fault_kinds();

/// Those that only a digest reveals, to be played where one is on offer: their `strike` goes into
/// any server's script.
std::vector<const FaultKind*> faults_for_digests();

// By file:
std::vector<FaultKind> compared_faults();
std::vector<FaultKind> status_faults();
std::vector<FaultKind> head_faults();
std::vector<FaultKind> body_faults();
std::vector<FaultKind> place_faults();

// What the catalogue's answers are made of:

std::string content_range(ByteRange range, std::uint64_t size);
/// The honest answer without its last `bytes`.
HttpAnswer cut(const Blow& blow, std::size_t bytes, HttpAnswer::End end);
/// The honest answer's first `bytes` of body.
HttpAnswer first_bytes(const Blow& blow, std::size_t bytes, HttpAnswer::End end);
/// The honest answer with one text in its head replaced; the text must be there.
HttpAnswer with_head(const Blow& blow, const std::string& from, const std::string& to);
/// The honest answer with more header fields: "Name: value\r\n"...
HttpAnswer with_fields(const Blow& blow, const std::string& fields);
/// An answer without use: status, fields and a short body with its length.
HttpAnswer refusal(const std::string& status, std::vector<std::string> fields = {});
HttpAnswer redirect(const std::string& location);
/// The asked bytes.
std::string body_of(const Blow& blow);
std::string chunked(const std::string& body);

}  // namespace librarian::weightmap::remote::testing
