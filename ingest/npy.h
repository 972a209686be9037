#pragma once
/// NumPy's `.npy`: integer arrays in, raw rows out.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/file_system.h"

namespace librarian::ingest {

struct NpyRows {
  std::vector<std::int32_t> ids;      ///< Row after row.
  std::vector<std::int64_t> offsets;  ///< [rows + 1]
};

/// What an .npy header says. @source numpy/lib/format.py, versions 1.0 to 3.0
struct NpyHeader {
  std::string descr;  ///< E.g. "<i4".
  bool fortran_order = false;
  std::vector<std::uint64_t> shape;
  std::uint64_t data_begin = 0;  ///< Byte offset of the first element.
};
/// @param text  The file's first bytes, at least as many as the header has.
/// @error bad_input  Not such a header; `what` names the file.
Result<NpyHeader> parse_npy_header(std::string_view text, const std::string& what);

/// Token ids of a 1-d array (one sample) or a 2-d array (a sample a row), any integer type whose
/// values fit. @error bad_input  names the file and what is wrong
Result<NpyRows> read_npy_ids(const File& file, const std::string& path);

/// Header of a C-order array to write before its bytes.
std::string npy_header_text(const std::string& descr, const std::vector<std::uint64_t>& shape);

}  // namespace librarian::ingest
