// Goal: no response head, however hostile, gets bytes of another range accepted.
// Method: the input's first byte chooses what was asked, the rest are the head's lines.

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "weightmap/remote/response_check.h"

using namespace librarian::weightmap::remote;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) {
    return 0;
  }
  ResponseExpectation expectation;
  expectation.range = (data[0] & 1U) != 0 ? ByteRange{0, 100} : ByteRange{100, 200};
  expectation.redirected = (data[0] & 2U) != 0;
  if ((data[0] & 4U) != 0 || expectation.range.begin != 0) {
    expectation.expected = ObjectInfo{1000, (data[0] & 8U) != 0 ? "\"a\"" : "", true};
  }
  std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  ResponseHead head;
  while (!text.empty()) {
    const std::size_t end = text.find('\n');
    if (!head.add_line(text.substr(0, end))) {
      return 0;
    }
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
  }
  const ResponseVerdict verdict = check_response(head, expectation);
  if (verdict.retry_after) {
    LIB_CHECK(verdict.retry_after->count() >= 0);
  }
  if (verdict.error || !verdict.location.empty()) {
    return 0;
  }
  LIB_CHECK(verdict.wanted.begin <= verdict.wanted.end);
  LIB_CHECK(verdict.wanted.end <= expectation.range.end);
  LIB_CHECK(verdict.body_begin <= verdict.wanted.begin);
  if (expectation.expected) {
    LIB_CHECK(verdict.info.size == expectation.expected->size);
    LIB_CHECK(verdict.wanted == expectation.range);
  }
  return 0;
}
