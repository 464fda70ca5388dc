package house

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
	"testing"
)

// TestAddresses: memory becomes a number only in the call of the system call itself, or of
// a function that is marked as one that takes memory so (rule 4 of package unsafe). Elsewhere
// the stack may be moved before the kernel gets the number, which go vet does not see.
func TestAddresses(t *testing.T) {
	for _, p := range list(t) {
		files := token.NewFileSet()
		marked := map[string]bool{}
		var parsed []*ast.File
		for _, name := range p.GoFiles {
			f, err := parser.ParseFile(files, filepath.Join(p.Dir, name), nil, parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			parsed = append(parsed, f)
			for _, d := range f.Decls {
				if fn, ok := d.(*ast.FuncDecl); ok && fn.Doc != nil && hasLine(fn.Doc, "//go:uintptrescapes") {
					marked[fn.Name.Name] = true
				}
			}
		}
		for _, f := range parsed {
			ast.Inspect(f, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok || takesAddresses(call.Fun, marked) {
					return true
				}
				for _, a := range call.Args {
					if isAddress(a) {
						t.Errorf("%s: memory as a number in a call that is no system call", files.Position(a.Pos()))
					}
				}
				return true
			})
		}
	}
}

func hasLine(g *ast.CommentGroup, text string) bool {
	for _, c := range g.List {
		if c.Text == text {
			return true
		}
	}
	return false
}

// takesAddresses reports whether a function is a system call, is marked, or is a number's
// type, as in uint64(uintptr(p)): what becomes of that is for its reader to see.
func takesAddresses(fun ast.Expr, marked map[string]bool) bool {
	switch f := fun.(type) {
	case *ast.Ident:
		return marked[f.Name] || f.Name == "uint64" || f.Name == "int64"
	case *ast.SelectorExpr:
		pkg, ok := f.X.(*ast.Ident)
		return ok && (pkg.Name == "unix" || pkg.Name == "syscall") && strings.Contains(f.Sel.Name, "Syscall")
	}
	return false
}

// isAddress reports whether an expression is uintptr(unsafe.Pointer(...)).
func isAddress(e ast.Expr) bool {
	inner, ok := converted(e, func(f ast.Expr) bool { id, ok := f.(*ast.Ident); return ok && id.Name == "uintptr" })
	if !ok {
		return false
	}
	_, ok = converted(inner, func(f ast.Expr) bool { s, ok := f.(*ast.SelectorExpr); return ok && s.Sel.Name == "Pointer" })
	return ok
}

// converted returns what is converted to a type.
func converted(e ast.Expr, to func(ast.Expr) bool) (ast.Expr, bool) {
	call, ok := e.(*ast.CallExpr)
	if !ok || len(call.Args) != 1 || !to(call.Fun) {
		return nil, false
	}
	return call.Args[0], true
}
