// SPDX-License-Identifier: Apache-2.0

package rootfs

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"path"
)

// checkLibraries returns an error if a program or library needs one that is not in t: a
// dynamic linker finds them by their names, in the directories of libraries.
func (t Tree) checkLibraries() error {
	has := map[string]bool{}
	for name := range t {
		has[path.Base(name)] = true
	}
	var errs []error
	for name, f := range t {
		if !bytes.HasPrefix(f.Data, []byte(elf.ELFMAG)) {
			continue
		}
		file, err := elf.NewFile(bytes.NewReader(f.Data))
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		needed, err := file.ImportedLibraries()
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		for _, lib := range needed {
			if !has[lib] {
				errs = append(errs, fmt.Errorf("%s: needs %s, which is not there", name, lib))
			}
		}
	}
	return errors.Join(errs...)
}
