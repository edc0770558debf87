// Files that hold secrets.
#pragma once

#include <string_view>

#include "base/file.h"

namespace fastserve {

/// Like write_file_atomically(), and nobody but the owner can read it at any moment.
Status write_private_file(const Path& path, std::string_view bytes);

/// Makes the folder when there is none, for its owner alone.
Status make_private_folder(const Path& path);

}  // namespace fastserve
