#include "fault_kinds.h"

#include <cstdio>

namespace librarian::weightmap::remote::testing {

std::string content_range(ByteRange range, std::uint64_t size) {
  return "Content-Range: bytes " + std::to_string(range.begin) + "-" +
         std::to_string(range.end - 1) + "/" + std::to_string(size);
}

HttpAnswer cut(const Blow& blow, std::size_t bytes, HttpAnswer::End end) {
  HttpAnswer answer = honest(blow.object, blow.request);
  answer.bytes.resize(answer.bytes.size() - std::min(bytes, body_of(blow).size()));
  answer.end = end;
  return answer;
}

HttpAnswer first_bytes(const Blow& blow, std::size_t bytes, HttpAnswer::End end) {
  const std::size_t all = body_of(blow).size();
  return all > bytes ? cut(blow, all - bytes, end) : honest(blow.object, blow.request);
}

HttpAnswer with_head(const Blow& blow, const std::string& from, const std::string& to) {
  HttpAnswer answer = honest(blow.object, blow.request);
  const std::size_t at = answer.bytes.find(from);
  LIB_CHECK(at < answer.bytes.find("\r\n\r\n") + 2);
  answer.bytes.replace(at, from.size(), to);
  return answer;
}

HttpAnswer with_fields(const Blow& blow, const std::string& fields) {
  return with_head(blow, "Content-Range:", fields + "Content-Range:");
}

HttpAnswer refusal(const std::string& status, std::vector<std::string> fields) {
  fields.emplace_back("Content-Length: 5");
  return {head(status, fields) + "sorry"};
}

HttpAnswer redirect(const std::string& location) {
  return {head("302 Found", {"Location: " + location, "Content-Length: 0"})};
}

std::string body_of(const Blow& blow) {
  const ByteRange range = *blow.request.range;
  return blow.object.substr(range.begin, range.size());
}

std::string chunked(const std::string& body) {
  char size[32];
  std::string text;
  for (std::size_t at = 0; at < body.size(); at += 10'000) {
    const std::string piece = body.substr(at, 10'000);
    std::snprintf(&size[0], sizeof size, "%zx\r\n", piece.size());
    text += &size[0] + piece + "\r\n";
  }
  return text;
}

const std::vector<FaultKind>& fault_kinds() {
  static const std::vector<FaultKind> kinds = [] {
    std::vector<FaultKind> all;
    for (auto* make : {compared_faults, status_faults, head_faults, body_faults, place_faults}) {
      for (FaultKind& kind : make()) {
        all.push_back(std::move(kind));
      }
    }
    return all;
  }();
  return kinds;
}

std::vector<const FaultKind*> faults_for_digests() {
  std::vector<const FaultKind*> found;
  for (const FaultKind& kind : fault_kinds()) {
    if (kind.required == FaultOutcome::undetectable) {
      found.push_back(&kind);
    }
  }
  return found;
}

}  // namespace librarian::weightmap::remote::testing
